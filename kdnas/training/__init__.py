"""The optimizer, the Trainer and the other means of the LightningModules' training."""
