"""The LightningModule, and what a run consists of."""
