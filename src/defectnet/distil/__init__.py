"""Training of a fast potential by a slow one: labels, the student network, the task and its command."""
