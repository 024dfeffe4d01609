"""The command line: ``kedit-lab COMMAND``."""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from kedit_lab.extract.moments import lab_text
from kedit_lab.facts.sets import by_density
from kedit_lab.facts.world import World, generate
from kedit_lab.model.lab import load
from kedit_lab.paths import data_dir, whole
from kedit_lab.show.figures import efficacy_curve
from kedit_lab.study.bench import bench, bench_memory, bench_methods
from kedit_lab.study.cost import stages
from kedit_lab.study.doctor import doctor
from kedit_lab.study.estimate import estimate, rates
from kedit_lab.study.register import EXPERIMENTS
from kedit_lab.study.scale import METHODS, TEXTS, scale
from kedit_lab.study.shapes import CONFIGS, random_lab
from kedit_lab.study.stored import reproduce
from kedit_lab.study.tour import tour, write_table
from kedit_lab.train.card import write_card
from kedit_lab.train.loop import Plan, train
from kedit_lab.train.mend import train_mend
from kedit_lab.train.report import report, stream_norms, write_report

DTYPES = ("float32", "bfloat16", "float16")
SMALL = 0.3  # of the model's own bytes: what small passes hold
TRAINED = {"steps": f"of the first stage; {Plan().grown_steps} and {Plan().polish_steps} of two more follow"}
UNSHAPED, SHAPED = ("plain", "stages", "methods", "memory"), ("plain", "stages", "scale")  # tables of bench


def count(text: str) -> int:
    """A whole number from 1 on, of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 2, ...")
    return int(text)


def megabytes(text: str) -> float:
    """Bytes of so many MB on the command line."""
    try:
        found = 1e6 * float(text)
    except ValueError:
        found = 0.0
    if not 1 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no size in MB")
    return found


def show(table: pd.DataFrame) -> None:
    """Print a table with three digits."""
    print(table.to_string(float_format="{:.3f}".format, na_rep=""))


def run_world(args: argparse.Namespace) -> None:
    """Draw the lab world from its word lists and write it as JSON."""
    generate(args.seed).save(args.out)


def run_train(args: argparse.Namespace) -> None:
    """Train the lab model (a cut run goes on); with --report only measure the one that is there."""
    if not args.report:
        settings = {name: getattr(args, name) for name in ("seed", "steps", "threads")}
        train(World.load(), args.out, Plan(**settings))
    lab, world = load(args.out), World.load()
    table = report(lab, world)
    write_report(table, args.out / "report.json")
    write_card(lab, world, table, stream_norms(lab, world), args.out)
    show(table)


def run_train_mend(args: argparse.Namespace) -> None:
    """Train MEND's editor for a model (the lab model unless one is named) and write it."""
    curve = train_mend(load(args.model), args.out, steps=args.steps, seed=args.seed)
    print(f"loss {curve[0]:.3f} -> {curve[-1]:.3f}; written: {args.out}")


def run_bench(args: argparse.Namespace) -> None:
    """Time an edit: against the plain form of the same computation, by stage, every recipe against memit; memory.

    The last two with passes as large as makes them fast, and with small ones, which take longer and hold little, unless
    --work says how much. With --shape, on a model of that shape with random weights, by default: plain, stages, scale.
    """
    dtype = getattr(torch, args.dtype)
    lab = random_lab(args.shape, dtype, args.device) if args.shape else load(args.model, dtype, args.device)
    many = max(args.sizes or [1000])  # of the memory table
    args.sizes = args.sizes or [1, 10, 100]
    lab = lab if args.work is None else replace(lab, work=args.work)
    bounds = [lab.work] if args.shape or args.work else [None, SMALL * lab.nbytes]
    most = max(args.sizes)
    texts = lab_text()[:TEXTS] if args.shape else None  # random weights: nobody reads what the second moment says
    methods, changed = args.methods or [args.method], {"steps": args.steps} if args.steps else {}
    for name in args.tables or (SHAPED if args.shape else UNSHAPED):
        if name == "plain":
            print("\nbatched against plain, one fact at a time")
            show(bench(lab, args.sizes, args.method, plain=args.plain, texts=texts, **changed))
        elif name == "stages":
            table, against = stages(lab, by_density(most), args.method, **changed)
            print(f"\nwhere the time goes, {most} facts, one layer; needed and done in 10⁹ operations")
            show(table)
            print("\nthe targets' arithmetic: of the plain form, and as a share of it needed (floor) and done (stands)")
            show(against.to_frame().T)
        elif name == "methods":
            for bound in bounds:
                passes = "passes as large as makes them fast" if bound is None else f"passes of {bound / 1e6:.1f} MB"
                print(f"\nevery locate-then-edit recipe at {most} facts, one edit each, {passes}")
                show(bench_methods(replace(lab, work=bound), most, args.methods, progress=True))
        elif name == "scale":
            print("\nseconds of one edit, every step taken")
            reused = {"reuse": args.reuse} if args.reuse else {}
            show(scale(lab, args.sizes, args.extrapolate, args.methods or METHODS, progress=True, **changed | reused))
        elif args.shape:
            print("\npeak memory, MB, of two steps")
            setting = {"moment_texts": texts, "steps": 2, "prefixes": 0}
            rows = {(m, n): bench_memory(lab, n, m, **setting) for m in tqdm(methods) for n in args.sizes}
            show(pd.DataFrame(rows).T.droplevel(1))
        else:
            print("\npeak memory, MB, with passes as large as makes them fast (no work), or of so much work")
            rows = {(m, b): bench_memory(replace(lab, work=b), many, m) for m in tqdm(methods) for b in bounds}
            show(pd.DataFrame(rows).T.droplevel(1))


def run_reproduce(args: argparse.Namespace) -> None:
    """Run registered grids into data/results/ (a cut run goes on); without names, list them."""
    for name in args.names:
        rows = reproduce(load(), name, args.jobs)
        show(rows[[column for column in rows if not isinstance(rows[column].iloc[0], list | dict)]])
    for name, asked in {} if args.names else EXPERIMENTS.items():
        print(f"{name:8}{asked.question}")


def run_doctor(args: argparse.Namespace) -> None:
    """Show what was found in a model (parts, orientation, tokenizer, values) and estimate N edits by method."""
    lab = load(args.model, getattr(torch, args.dtype), args.device, args.device_map, args.local_only, args.revision)
    rate = rates(lab)
    print(doctor(lab, args.facts, rate).to_string())
    print(f"\nestimate of {args.facts} edits (every step taken, statistics in their cache): seconds, MB")
    print(estimate(lab, args.facts, rate=rate).to_string(float_format="{:,.1f}".format))


def run_tour(args: argparse.Namespace) -> None:
    """Run the collision study and write its table and figure."""
    frame = tour(load(args.model))
    write_table(frame, args.out / "collision.csv")
    with whole(args.out / "collision.png") as temporary:
        efficacy_curve(frame).savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    show(frame.groupby(["method", "subjects", "size"])["efficacy"].mean().unstack("size"))
    print(f"written: {args.out / 'collision.csv'}, {args.out / 'collision.png'}")


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``kedit-lab``."""
    parser = argparse.ArgumentParser(prog="kedit-lab", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, action) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=action.__doc__, description=action.__doc__)
        added.set_defaults(action=action)
        return added

    world = command("world", run_world)
    world.add_argument("--seed", type=int, default=0)
    world.add_argument("--out", type=Path, default=data_dir() / "world")
    trainer = command("train", run_train)
    trainer.add_argument("--out", type=Path, default=data_dir() / "lab-model")
    trainer.add_argument("--report", action="store_true", help="measure only")
    for name in ("seed", "steps", "threads"):
        trainer.add_argument(
            f"--{name}", type=int if name == "seed" else count, default=getattr(Plan(), name), help=TRAINED.get(name)
        )
    mender = command("train-mend", run_train_mend)
    mender.add_argument("--model", default=None)
    mender.add_argument("--out", type=Path, default=data_dir() / "mend" / "editor.safetensors")
    mender.add_argument("--steps", type=int, default=1200)
    mender.add_argument("--seed", type=int, default=0)
    timer = command("bench", run_bench)
    timer.add_argument("--model", default=None, help="folder or hub name; the embedded model unless given")
    timer.add_argument("--shape", default=None, help=f"random weights instead: {', '.join(CONFIGS)}")
    timer.add_argument("--method", default="memit")
    timer.add_argument(
        "--methods", nargs="+", default=None, help="of the tables methods (locate-then-edit), scale and memory"
    )
    timer.add_argument(
        "--sizes",
        type=count,
        nargs="+",
        default=None,
        help="numbers of facts (1, 10, 100; without --shape 1000 for memory)",
    )
    timer.add_argument("--extrapolate", type=count, nargs="+", default=[], help="numbers of facts that are not run")
    timer.add_argument("--plain", type=count, default=100, help="facts that the plain form is run on at most")
    timer.add_argument("--steps", type=count, default=None, help="passes of the targets, the recipe's unless given")
    timer.add_argument("--reuse", type=count, default=None, help="steps of Adam a pass, of the scale table")
    timer.add_argument("--work", type=megabytes, default=None, help="MB that a pass may hold beside the model")
    timer.add_argument("--tables", nargs="+", choices=["plain", "stages", "methods", "scale", "memory"])
    timer.add_argument("--dtype", choices=DTYPES, default="float32")
    timer.add_argument("--device", default="cpu")
    repeat = command("reproduce", run_reproduce)
    repeat.add_argument("names", nargs="*", metavar="ID", help="ids of the register; none: list them")
    repeat.add_argument("--jobs", type=count, default=1, help="processes")
    check = command("doctor", run_doctor)
    check.add_argument("model", nargs="?", default=None, help="folder or hub name; the embedded model unless given")
    check.add_argument("--facts", type=int, default=100, help="number of edits that the estimate is for")
    check.add_argument("--dtype", choices=DTYPES, default="float32")
    check.add_argument("--device", default="cpu")
    check.add_argument("--device-map", default=None, help="auto: spread the layers over devices and CPU")
    check.add_argument("--local-only", action="store_true", help="never ask the network")
    check.add_argument("--revision", default=None, help="a hub model's branch, tag or commit")
    guide = command("tour", run_tour)
    guide.add_argument("--model", default=None)
    guide.add_argument("--out", type=Path, default=Path("out/tour"))
    args = parser.parse_args(argv)
    try:
        args.action(args)
    except (ValueError, OSError, MemoryError) as error:
        if args.traceback:
            raise
        parser.exit(2, f"kedit-lab: {str(error) or 'out of memory'}\n")
    except KeyboardInterrupt:
        if args.traceback:
            raise
        parser.exit(130, "kedit-lab: interrupted\n")


if __name__ == "__main__":
    main()
