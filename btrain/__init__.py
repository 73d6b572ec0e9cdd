"""Train one PyTorch model on machines that do not trust each other."""
