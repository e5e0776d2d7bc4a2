"""What answers: one interface (`estimator`), networks (`base`, one file each), tables (`networks`, `registry`)."""
