"""Parts of a GPU check that go wrong."""

import os
import time


def fine(setting, report):
    report.text("fine")
    report.figure("MFU", 0.5)


def raises(setting, report):
    report.head("one", "two")
    report.row(1, 2)
    raise ValueError("no such kernel")


def dies(setting, report):
    os._exit(77)


def hangs(setting, report):
    report.text(f"{report.seconds_left:.0f} s left")
    time.sleep(100)


def differs(setting, report):
    report.check(True, "one is one")
    report.check(False, "one is two")
