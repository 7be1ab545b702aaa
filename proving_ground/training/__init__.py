"""Everything that makes the bundled model from nothing: one file per trained part, one loop for all."""
