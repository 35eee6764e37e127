"""The paper's words in torch: no files, no printing."""
