"""Sources, splits, sampling and the LightningDataModule."""
