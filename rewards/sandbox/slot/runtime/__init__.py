"""What runs inside a job: Python programs, calls to a candidate, and the tests that call it."""
