"""The files of a store: header, documents, segments, index, seal, transactions and checks."""
