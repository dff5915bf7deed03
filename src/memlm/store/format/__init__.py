"""The bytes of a store on disk: header, documents, segments, index and seal."""
