"""The parts that the time of a training step is divided into."""

TRAJECTORY, TEACHER, STUDENT, OPTIMISER, OTHER = "trajectory", "teacher", "student", "optimiser", "other"
PARTS = (TRAJECTORY, TEACHER, STUDENT, OPTIMISER, OTHER)
