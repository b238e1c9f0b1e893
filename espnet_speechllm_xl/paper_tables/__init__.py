"""The paper's tables: what is planned, trained, recorded, compared.  Imports corpus and evaluation; never a model."""
