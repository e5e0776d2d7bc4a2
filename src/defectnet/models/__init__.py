"""What answers: one interface (`estimator`), networks (`base`, one file each), literal tables (`networks`, `registry`)."""
