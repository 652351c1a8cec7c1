"""From a corpus to a token store: in local processes or Beam, restartable."""
