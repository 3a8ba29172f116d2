"""What nmap takes its time for: version and system of a box that drops, see tests/e2e."""

import pytest
import test_scans

pytestmark = pytest.mark.chaos


def test_nmap_says_the_same_of_a_box_that_drops(wire, daemon, address):
    test_scans.compare(wire, daemon, address, 'dropping', test_scans.SCANS)
