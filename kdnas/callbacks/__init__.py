"""Lightning callbacks: latency benchmarking, controller updates, export, progress, seeds."""
