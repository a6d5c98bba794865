"""The open-vocabulary detector: heads, losses, inference, finetuning, a model folder, drawing."""
