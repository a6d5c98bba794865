"""The caption parser that needs no trained model."""
