"A table that grows row by row, and goes on where it was left."
import csv


def kept(table):
    """The rows that are there."""
    return list(csv.DictReader(table.open())) if table.exists() else []


def grow(table, columns, rows, found):
    """Writes the table anew with every row that is found, and prints it."""
    for row in found:
        rows.append(row)
        with table.open('w', newline='') as f:
            writer = csv.DictWriter(f, columns, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
        print(*row.values(), flush=True)
