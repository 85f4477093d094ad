import subprocess
import sys

from bench.process import free_port

CLAIM = "import sys; from bench.process import claim_port; print(claim_port(int(sys.argv[1])))"


def claimed_by_another(port: int) -> bool:
    """Have another process, which ends at once, claim a port; return whether it could."""
    done = subprocess.run([sys.executable, "-c", CLAIM, str(port)], capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_a_port_that_was_found_is_given_to_no_other_process_even_before_a_server_listens() -> None:
    assert not claimed_by_another(free_port())


def test_a_claim_ends_with_its_process() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from bench.process import free_port; print(free_port())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert claimed_by_another(int(found.stdout))
