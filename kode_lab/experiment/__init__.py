"""The laboratory: experiments that are run, recorded, judged and drawn.

    lab          the loop an experiment runs on, and the handle its caller waits with
    run          the directory that holds all that came of a run
    scenario     what is asked of whom, drawn in advance; trial does it, service is asked
    comparison   runs side by side; run_list: those that there are
    record       a run, or somebody's report, as a small JSON; replay does it again
    report       a run as one page; gallery: the notebooks as pages
    documented   the report's two tests, as data
    reproduce    doing them again
    evidence     what a reproduction left behind, turn by turn
    claims       what the report says, judged from that
    summary      what a person reads afterwards; live: what they see meanwhile
    perfetto     a trace for ui.perfetto.dev
    turn_view    a turn from both sides, for tables (the only pandas) and figures (matplotlib)

Rooms are imported by name: what draws or tabulates costs seconds to load, and a run needs neither.
"""
