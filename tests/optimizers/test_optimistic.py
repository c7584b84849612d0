"""optimistic_adam: what the table of cases cannot say."""

import pytest

from functional_opt import optimistic_adam


def test_the_old_name_warns_where_it_is_called():
    with pytest.warns(DeprecationWarning, match="use `optimistic_adam_v2` instead") as caught:
        optimistic_adam(0.1)
    assert caught[0].filename == __file__
