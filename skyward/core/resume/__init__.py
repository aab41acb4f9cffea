"""Results that outlive the program: `Compute(resume=...)`."""
