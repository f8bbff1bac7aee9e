"""What the commands do; `sensorium.cli` says what they are called."""
