"""Private parts of DeepSpeed are checked before they are used."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from parl.learn.shard.ds_engine import check_parts


def test_what_another_version_lacks_is_named_with_the_setting_and_a_cure():
    check_parts(SimpleNamespace(kept=1), ("kept",), "trainer.parallel.zero=3")
    with pytest.raises(RuntimeError, match=r"zero=3 uses gone, lost of DeepSpeed.*install deepspeed=="):
        check_parts(SimpleNamespace(kept=1), ("gone", "kept", "lost"), "trainer.parallel.zero=3")
