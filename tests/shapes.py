"""How signatures are checked while the tests run: as mypy reads them, so an int is a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
