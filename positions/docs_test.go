package positions

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const docsFile = "docs/stream-positions.md"

func readText(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Every row of the table of tokens is what becomes of one.
func TestDocumentedTokens(t *testing.T) {
	rows := regexp.MustCompile("(?m)^\\| (none|`s1[^|`]*`) \\| `([^`]+)` \\| (\\w+)(?: is after (\\d+))?").FindAllStringSubmatch(readText(t, docsFile), -1)
	if len(rows) < 10 {
		t.Fatalf("only %d rows were found", len(rows))
	}
	for _, row := range rows {
		provider := &fixed{latest: 42}
		parts, next := read(t, registry(t, stream(provider)), strings.TrimPrefix(strings.Trim(row[1], "`"), "none"))
		said := map[string]string{"everything": "complete to 42", "nothing": "", "what": "from " + row[4] + " to 42"}
		want, known := said[row[3]]
		if got := strings.Join(provider.calls, ", "); !known || got != want || (parts == "") != (want == "") {
			t.Errorf("since %s: the provider was asked for %q, want %q", row[1], got, row[3])
		}
		if want := strings.Replace(row[2], "s5", "s2", 1); next != want {
			t.Errorf("since %s: next_batch is %s, want %s", row[1], next, want)
		}
	}
}

// Every token that is shown can be taken apart and put together.
func TestDocumentedExamplesParse(t *testing.T) {
	tokens := regexp.MustCompile(`s1_2_3_4_5_6_7_8_9\.[a-z0-9.-]+`).FindAllString(readText(t, docsFile), -1)
	if len(tokens) < 2 {
		t.Fatalf("only %q were found", tokens)
	}
	for _, token := range tokens {
		if parsed := ParseToken(token); parsed.Host != "s1_2_3_4_5_6_7_8_9" || len(parsed.parts) != 1 || parsed.String() != token {
			t.Errorf("%s was taken for %+v", token, parsed)
		}
	}
}

func TestDocumentedNumbers(t *testing.T) {
	text := strings.Join(strings.Fields(readText(t, docsFile)), " ")
	longest := Token{parts: []part{{strings.Repeat("n", maxNameBytes), 1<<63 - 1}}}
	limits := Limits{}.orDefault()
	for _, sentence := range []string{
		fmt.Sprintf("at most %d parts of %d bytes at most, those of %d streams of this server and of %d others", maxParts, len(longest.String()), maxStreams, maxParts-maxStreams),
		fmt.Sprintf("digits and `_`, at most %d in all", maxNameBytes),
		fmt.Sprintf("%d items and %d MiB in a response", limits.Items, limits.Bytes>>20),
		fmt.Sprintf("nested deeper than %d levels", types.MaxContentDepth),
	} {
		if !strings.Contains(text, sentence) {
			t.Errorf("%s does not say %q", docsFile, sentence)
		}
	}
}

// exported returns what a package exports: names, methods, and for types also package.Name and package.Type.Field.
func exported(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no Go files (%v)", dir, err)
	}
	pkg := filepath.Base(dir)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names = append(names, n.Name.Name)
				if n.Recv == nil {
					names = append(names, pkg+"."+n.Name.Name)
				}
			case *ast.TypeSpec:
				names = append(names, n.Name.Name, pkg+"."+n.Name.Name)
				if s, ok := n.Type.(*ast.StructType); ok {
					for _, field := range s.Fields.List {
						for _, name := range field.Names {
							names = append(names, name.Name, pkg+"."+n.Name.Name+"."+name.Name)
						}
					}
				}
			}
			return true
		})
	}
	return names
}

// What the document names exists: files, functions, make targets, and the lines that it shows of the example.
func TestDocumentNamesWhatExists(t *testing.T) {
	text := readText(t, docsFile)
	var names []string
	for _, dir := range []string{"positions", "host", "cmd/dendrite-todevice", "examples/announcements"} {
		names = append(names, exported(t, dir)...)
	}
	checked := 0
	for _, span := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		code := span[1]
		switch {
		case regexp.MustCompile(`^(positions|host|cmd|examples|e2e|docs)(/[\w./-]+)?$`).MatchString(code):
			if _, err := os.Stat(filepath.Join("..", filepath.FromSlash(code))); err != nil {
				t.Error(err)
			}
		case regexp.MustCompile(`^(positions\.[\w.]+|[A-Z][a-zA-Z]+|addStreams)$`).MatchString(code):
			if !slices.Contains(names, code) {
				t.Errorf("there is no %s", code)
			}
		case strings.HasPrefix(code, "make "):
			if !strings.Contains(readText(t, "Makefile"), "\n"+strings.TrimPrefix(code, "make ")+": ") {
				t.Errorf("there is no %s", code)
			}
		default:
			continue
		}
		checked++
	}
	if checked < 25 {
		t.Errorf("only %d names were found", checked)
	}
	if !strings.Contains(readText(t, "Makefile"), "./positions:FuzzToken") {
		t.Error("make fuzz does not run FuzzToken")
	}
	if !strings.Contains(readText(t, "README.md"), "("+docsFile+")") {
		t.Errorf("the README does not link %s", docsFile)
	}
	example := strings.Join(strings.Fields(readText(t, "cmd/dendrite-todevice/streams_announcements.go")), " ")
	shown := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(shown) != 1 {
		t.Fatalf("%d pieces of Go are shown", len(shown))
	}
	if code := strings.Join(strings.Fields(shown[0][1]), " "); !strings.Contains(example, code) {
		t.Errorf("the example does not have\n%s", shown[0][1])
	}
}

// The command can be built in a repository of somebody else's: Go lets nobody else import what is internal here.
func TestCommandCanBeCopied(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "cmd", "dendrite-todevice", "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no Go files (%v)", err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range parsed.Imports {
			if strings.Contains(path.Path.Value, "/internal/") && strings.Contains(path.Path.Value, "/todevicemodule/") {
				t.Errorf("%s imports %s", file, path.Path.Value)
			}
		}
	}
}

// The key and the name that the document shows are good.
func TestDocumentedStreamIsGood(t *testing.T) {
	registry(t, Stream{Name: "announcements", Key: "org.example.announcements", Provider: &fixed{}}).WakeDevices(types.Device{})
}
