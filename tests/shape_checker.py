"""What checks shapes and types at every call while tests run: beartype, with int as a float."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
