import pytest


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """Use one thread: tiny models gain nothing from more, and lose a lot if cores are shared."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
