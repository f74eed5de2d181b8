"""What is timed, against whom, and the recorded results: see README.md beside this file."""
