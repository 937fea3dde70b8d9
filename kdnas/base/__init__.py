"""Common to all rooms: errors, config, files and locks, the host, the run folder, the screen."""
