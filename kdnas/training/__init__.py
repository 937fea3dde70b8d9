"""What the LightningModules train with."""
