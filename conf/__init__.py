"""The configs, a folder a group; importable as `kdnas.conf`, so that configs of your own can search here too."""
