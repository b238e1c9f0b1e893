"""The paper's tables: plan, trainings, records, comparisons.  Imports corpus and evaluation; never a model."""
