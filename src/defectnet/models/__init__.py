"""Networks: one interface (`base`), one file each, one literal table (`registry`)."""
