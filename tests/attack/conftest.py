"""The attack: many hostile or extreme cases in each area, counted, with one table at the end of the run."""

import traceback
from contextlib import contextmanager

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if 'attack' in item.path.parts:
            item.add_marker(pytest.mark.slow)


class Attack:
    """Counts the cases of a test; a wrong one does not stop the others."""

    def __init__(self):
        self.tried = 0
        self.wrong: list[str] = []

    @contextmanager
    def case(self, name: str):
        """Try one case: any exception that leaves the block, a failed assertion included, makes it a wrong one."""
        self.tried += 1
        try:
            yield
        except Exception as e:
            where = traceback.extract_tb(e.__traceback__)[-1]
            self.wrong.append(f'{name}: {type(e).__name__}: {str(e)[:300]} ({where.filename}:{where.lineno})')


@pytest.fixture
def attack(request):
    """Counter of the cases of this test, which fails at its end if any case was wrong."""
    counter = Attack()
    yield counter
    area = request.node.path.stem.removeprefix('test_').removeprefix('attack_').replace('_', ' ')
    request.node.user_properties.append(('attack', (area, counter.tried, len(counter.wrong))))
    if counter.wrong:
        some = '\n'.join(counter.wrong[:20])
        pytest.fail(f'{len(counter.wrong)} of {counter.tried} cases are wrong:\n{some}', pytrace=False)
    assert counter.tried, 'this attack tried nothing'
