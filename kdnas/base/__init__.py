"""What every room uses: errors, config, files and locks, the host, the run folder, the screen."""
