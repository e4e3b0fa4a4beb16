"""What tests and benchmarks both need: real servers and Airflows, and copies of the project."""
