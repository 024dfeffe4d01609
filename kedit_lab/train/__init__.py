"""How the lab model is made and measured: tokenizer, training loop, report."""
