"""The jobs of the pipeline, one file a stage, and the frame that runs them."""
