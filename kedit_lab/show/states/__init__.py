"""What the panels show, without a widget in sight: each state runs on the lab and leaves its weights as they were."""
