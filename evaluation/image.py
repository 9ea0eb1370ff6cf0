"""--image: the report of one study from its picture files, with its clues."""

import json

import trrg
from evaluation.checkpoint import decoding_of
from evaluation.explain import explain
from evaluation.output import NO_ADVICE, trained_on


def report_on_images(args, header, processes):
    """Prints the report and its clues, or with --explain the steps that lead to the report. Raises UserError."""
    if processes.rank:
        return
    model = trrg.load(args.ckpt, weights=args.weights, device=processes.device)
    model.decoding = decoding_of(header, args)
    origin = trained_on(header)
    if args.explain:
        print(f"{origin}\n\n{explain(model, args.image)}\n\n{NO_ADVICE}")
        return

    report = model.report(args.image)
    if args.json:
        clues = [{"prompt": prompt, "weight": weight} for prompt, weight in report.clues]
        print(json.dumps({"report": report.text, "clues": clues, "trained_on": origin, "notice": NO_ADVICE},
                         ensure_ascii=False))
        return

    print(f"{origin}\n\nReport\n  {report.text or '(empty)'}")
    if report.clues:
        print("Clues (weight of each disease; the weights of all 14 diseases sum to 1)")
        for prompt, weight in report.clues:
            print(f"  {weight:6.1%} {'█' * round(20 * weight):<20} {prompt}")
    print(f"\n{NO_ADVICE}")
