"""Commands as documents and configurations show them, held against the options that there are."""

import re
import shlex

import typer

from maskmill.pipelines.cli import app
from maskmill.pipelines.config.run import load_config

ENDS = {"|", "||", "&&", ";", ">", ">>", "&"}


def commands_in(text, program):
    """The words behind `program` in each line of shell, in comments of YAML and in quoted commands too."""
    text = re.sub(r"\\\n[#\s]*", " ", text)
    for line in text.splitlines():
        if re.search(rf"(^|[\s/\"']){program}\s+[a-z]", line):
            yield from _words_behind(shlex.split(line.lstrip("# "), comments=True), program)


def _words_behind(words, program):
    for place, word in enumerate(words):
        if word == program or word.endswith(f"/{program}"):
            rest = words[place + 1 :]
            end = next((index for index, each in enumerate(rest) if each in ENDS), len(rest))
            yield rest[:end]
            yield from _words_behind(rest, program)
            return
        if " " in word:
            yield from _words_behind(shlex.split(word), program)


def parse(words, group=None):
    """The command that the words name, and its values, as the program's own parser reads them."""
    command, rest = group or typer.main.get_command(app), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, command.make_context(words[0], rest).params


def check_maskmill(words):
    """Parse a command of ours; what it says of the configuration must be a configuration."""
    command, values = parse(words)
    assert command.name != "maskmill", f"{words}: no such command"
    if "set_" in values:
        return load_config(values.get("config"), list(values["set_"] or ()))
    return None
