"""What a labelled row is for: the classes of a task, and its metrics."""
