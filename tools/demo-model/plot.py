"""Draw loss curves as SVG:  python plot.py OUT.svg NAME=CURVE.csv...

The runs are laid end to end along the tokens, as they were trained. Solid is held-out loss, faint is training loss; under
each, as a shaded floor, the sparsity of the linear layers.
"""
import csv
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 56, 56, 24, 48
COLOURS = ['#1b6ca8', '#b8501f', '#3a7d44', '#7a4b94']


def read_curve(path):
    with open(path, encoding='utf8') as file:
        return [{key: float(value) if value else float('nan') for key, value in row.items()} for row in csv.DictReader(file)]


def main():
    out, runs = sys.argv[1], [item.split('=', 1) for item in sys.argv[2:]]
    runs = [(name, read_curve(path)) for name, path in runs]
    total = sum(rows[-1]['tokens'] for _, rows in runs)
    losses = [row[key] for _, rows in runs for row in rows for key in ('train_loss', 'held_out_loss') if row[key] == row[key]]
    low, high = int(min(losses) * 10) / 10, int(max(losses) * 10 + 1) / 10

    def x(tokens):
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / total

    def y(share):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def y_loss(loss):
        return y((loss - low) / (high - low))

    def points(pairs):
        return ' '.join(f'{a:.1f},{b:.1f}' for a, b in pairs)

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for tenth in range(round(low * 10), round(high * 10) + 1):
        level = y_loss(tenth / 10)
        svg.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#e4e4e4"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    start = 0
    for index, (name, rows) in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        if any(row['sparsity'] for row in rows):
            area = [(x(start + row['tokens']), y(row['sparsity'] / 2)) for row in rows]
            area = [(area[0][0], y(0))] + area + [(area[-1][0], y(0))]
            svg.append(f'<polygon points="{points(area)}" fill="{colour}" fill-opacity="0.1"/>')
            svg.append(f'<text x="{WIDTH - RIGHT + 6}" y="{y(rows[-1]["sparsity"] / 2) + 4:.1f}">{100 * rows[-1]["sparsity"]:.0f} %</text>')
        for key, opacity in (('train_loss', 0.4), ('held_out_loss', 1)):
            line = [(x(start + row['tokens']), y_loss(row[key])) for row in rows if row[key] == row[key]]
            svg.append(f'<polyline points="{points(line)}" fill="none" stroke="{colour}" stroke-width="2" stroke-opacity="{opacity}"/>')
        svg.append(f'<text x="{x(start + rows[-1]["tokens"] / 2):.1f}" y="{TOP - 8}" text-anchor="middle" fill="{colour}">{name}</text>')
        start += rows[-1]['tokens']
    for million in range(0, int(total / 1e6) + 1):
        svg.append(f'<text x="{x(million * 1e6):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{million}</text>')
    svg.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
               'million tokens (solid: held-out loss, faint: training loss, shaded: sparsity)</text>')
    svg.append(f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">loss a token</text>')
    svg.append('</svg>')
    with open(out, 'w', encoding='utf8') as file:
        file.write('\n'.join(svg) + '\n')


if __name__ == '__main__':
    main()
