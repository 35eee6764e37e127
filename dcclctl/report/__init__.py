"""Tables and charts of results for the terminal, HTML, Markdown and JUnit."""
