"""What answers: one interface (`estimator`), networks (`base`, one file each), one literal table (`registry`)."""
