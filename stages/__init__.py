"""The jobs of the pipeline, one file per stage, and the frame that runs them."""
