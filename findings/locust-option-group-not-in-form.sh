#!/usr/bin/env bash
# locust 2.47.0
#
# Expected   Options that a locustfile adds to the command line appear in the web interface's start form, also those that it adds
#            through argparse's own add_argument_group.
# Behaviour  Only Locust's own parser.add_argument marks an option for the form. An option of a group is parsed and printed by
#            --help, but it is not in the form, and there is no error or warning.
# Seen       parsed: alone, in_group; in the form: alone
# Matters    A load test that sorts its options into groups runs with their defaults when it is started from the browser, and
#            the person who starts it cannot see that there is anything to set.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install locust==2.47.0
cat > "$work/options.py" <<'PY'
from locust import argument_parser, events


@events.init_command_line_parser.add_listener
def add_options(parser):
    parser.add_argument("--alone", default="a", help="an option of its own")
    group = parser.add_argument_group("shop", "options of the shop")
    group.add_argument("--in-group", default="b", help="an option in a group")


parsed = vars(argument_parser.parse_options([]))
shown = argument_parser.ui_extra_args_dict([])
print("parsed:", ", ".join(name for name in ("alone", "in_group") if name in parsed), end="; ")
print("in the form:", ", ".join(sorted(shown)))
PY
seen=$(cd "$work" && "$work/venv/bin/python" options.py | grep "^parsed")  # before it stands a notice of deprecation
echo "$seen"
if [ "$seen" = "parsed: alone, in_group; in the form: alone" ]; then
    echo "as described"
else
    echo "the behaviour has changed" >&2
    exit 1
fi
