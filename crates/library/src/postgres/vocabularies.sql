-- Version 4: vocabularies of tags. Versions never change; one of them counts.

CREATE TABLE vocabularies(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name TEXT COLLATE "C" NOT NULL UNIQUE,
  -- The number of the newest version, which is not used again.
  latest BIGINT NOT NULL,
  -- Without one, the vocabulary is deleted.
  current_version BIGINT,
  created_at BIGINT NOT NULL
);
CREATE TABLE vocabulary_versions(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  vocabulary_id BIGINT NOT NULL REFERENCES vocabularies(id),
  version BIGINT NOT NULL,
  -- What it says, as JSON, and the hash of that.
  content TEXT COLLATE "C" NOT NULL,
  digest TEXT COLLATE "C" NOT NULL,
  message TEXT COLLATE "C" NOT NULL,
  author_id BIGINT NOT NULL REFERENCES authors(id),
  created_at BIGINT NOT NULL,
  UNIQUE(vocabulary_id, version)
);
