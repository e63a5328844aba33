"""The rollout engine: documents, events, their fold, what is observed, what to do next. Pure, all of it."""
